"""How a site's ranks train one model together: one file for each way, and who chooses among them."""
