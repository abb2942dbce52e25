"""What relay and sites both speak: names of objects, pins of keys, units."""
