"""What the sites of a federation do together once they have joined: training is one program among others."""
