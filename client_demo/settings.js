// @ts-check
/** What the person chose, remembered in this browser; the access key outlives no window. */

const STORE = "parley";

const DEFAULTS = {
  mode: "free",
  voice: "",
  mic: "",
  camera: "",
  speaker: "",
  captions: "medium",
  greet: false,
  clips: false,
  details: false,
  key: "",
};

/** @typedef {typeof DEFAULTS} Settings */

/** @returns {Settings} */
export function recall() {
  try {
    return { ...DEFAULTS, ...JSON.parse(localStorage.getItem(STORE) ?? "{}"), key: sessionStorage.getItem(STORE) ?? "" };
  } catch {
    return { ...DEFAULTS }; // storage may be forbidden
  }
}

/** @param {Settings} settings */
export function remember({ key, ...rest }) {
  try {
    localStorage.setItem(STORE, JSON.stringify(rest));
    sessionStorage.setItem(STORE, key);
  } catch {
    // The choice holds for this visit.
  }
}
