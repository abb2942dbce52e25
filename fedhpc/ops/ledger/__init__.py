"""What a site's operator does with the institution's ledger: look at it, and take over what older versions wrote."""
