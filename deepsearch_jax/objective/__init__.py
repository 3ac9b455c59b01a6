"""The equations of the loss and nothing else: node values to advantages, log-probs and advantages to a loss."""
