"""Site stores: from CSV files to one HDF5 file that describes itself."""
