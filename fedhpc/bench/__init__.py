"""Measurements that anyone can repeat: `fedhpc bench`."""
