"""Does a model fit the devices? Arithmetic over its config.json and files; no engine needed."""
