"""Media time and messages: what the gateway and the worker share; free of torch outside `engine`."""
