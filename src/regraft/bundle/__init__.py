"""The saved model: written, verified, loaded; predictions and heat maps. Never torch."""
