"""The assets, a module per group of the graph. Each module's function declares its group for one `Runtime`."""
