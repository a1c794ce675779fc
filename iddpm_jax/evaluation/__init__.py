"""What a trained model is worth: samples and likelihood."""
