"""Four sites by organ system: a small transformer on the definitions of the Human Phenotype Ontology."""
