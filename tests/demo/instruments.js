// A microphone on cue and an ear at the speakers; runs before the page's own code.
(() => {
  const lab = (window.lab = { asked: 0, tap: [], tracks: [], errors: [], inputs: [], states: [] });
  addEventListener("error", (event) => lab.errors.push(String(event.message)));
  addEventListener("unhandledrejection", (event) => lab.errors.push(String(event.reason)));

  for (const kind of ["click", "keydown"]) addEventListener(kind, () => lab.inputs.push(performance.now()), true);

  /* Every state, also one that passes between two looks. */
  new MutationObserver((changes) => {
    lab.states.push(...changes.slice(1).map(({ oldValue }) => oldValue), document.documentElement.dataset.state);
  }).observe(document, { subtree: true, attributeFilter: ["data-state"], attributeOldValue: true });

  const Context = AudioContext;
  window.AudioContext = class extends Context {
    constructor(...options) {
      super(...options);
      (lab.contexts ??= []).push(this);
    }
  };

  const connect = AudioNode.prototype.connect;
  /* The microphone: whatever the test starts, plus an inaudible constant so that the track is never empty. */
  if (navigator.mediaDevices) {
    const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => {
      lab.asked++;
      if (lab.refuse?.[wanted.audio ? "audio" : "video"]) throw new DOMException("refused", lab.refuse[wanted.audio ? "audio" : "video"]);
      const stream = await real(wanted);
      if (!wanted.audio || lab.useDevice) {
        lab.tracks.push(...stream.getTracks());
        return stream;
      }
      stream.getTracks().forEach((track) => track.stop()); // it asked for permission; the sound comes from the test
      const context = (lab.context = new Context());
      const mouth = (lab.mouth = context.createMediaStreamDestination());
      const hum = context.createConstantSource();
      const quiet = context.createGain();
      quiet.gain.value = 1e-5;
      connect.call(hum, quiet);
      connect.call(quiet, mouth);
      hum.start();
      lab.tracks.push(...mouth.stream.getTracks());
      return mouth.stream;
    };
  }

  /** Speaks PCM16 (base64) into the microphone; resolves with when it starts and ends. */
  lab.speak = async (base64, rate) => {
    const bytes = Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
    const samples = Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32768);
    const buffer = lab.context.createBuffer(1, samples.length, rate);
    buffer.copyToChannel(samples, 0);
    const source = lab.context.createBufferSource();
    source.buffer = buffer;
    connect.call(source, lab.mouth);
    source.start();
    const startsAt = performance.now();
    return { startsAt, endsAt: startsAt + (1000 * samples.length) / rate };
  };

  /* The ear: everything that goes to a destination also goes to a worklet-free recorder of raw samples. */
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode && this.context !== lab.context) {
      const ear = this.context.createScriptProcessor(1024, 1, 1);
      ear.onaudioprocess = ({ inputBuffer }) => {
        const heard = inputBuffer.getChannelData(0);
        let peak = 0;
        for (const sample of heard) peak = Math.max(peak, Math.abs(sample));
        lab.tap.push({ at: performance.now(), peak, samples: lab.keep ? Array.from(heard) : null });
      };
      lab.rate = this.context.sampleRate;
      connect.call(this, ear);
      connect.call(ear, target); // silent: its output stays empty
      this.ear = ear;
    }
    return connect.call(this, target, ...rest);
  };
})();
