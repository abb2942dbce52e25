"""What moves a site's objects to the relay and back: over HTTPS, or through a spool directory."""
