"""What is fitted to features: linear heads, calibration, what is out of distribution, which features are best."""
