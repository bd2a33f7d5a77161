"""Any number of samples into a folder, by one process or several."""
