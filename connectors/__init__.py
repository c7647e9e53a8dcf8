"""Sources and sinks, one file per system. Imports no runtime."""
