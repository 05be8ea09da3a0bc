"""Raw networks F(x, c_noise): layers and the U-Net family."""
