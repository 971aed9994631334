"""From an admitted request to its events: render, admit, run, meter, end."""
