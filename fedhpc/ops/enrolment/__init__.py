"""How sites that never met get keys, certificates, a roster and a signed configuration (docs/enrolment.md)."""
