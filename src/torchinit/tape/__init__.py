"""The tape: records what model code draws and computes, on untouched memory, to replay later."""
