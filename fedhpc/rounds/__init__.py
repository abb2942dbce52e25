"""The main loop and what a round of training is made of; a round is one masked sum and one outer step."""
