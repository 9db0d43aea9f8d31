"""The mathematics of noise: path, guidance, samplers; shared by training and serving."""
