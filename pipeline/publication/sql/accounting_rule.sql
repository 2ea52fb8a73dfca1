-- Of a file's account. README.md quotes it.
lines = loaded + unchanged + superseded + excluded + rejected
