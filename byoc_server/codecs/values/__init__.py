"""From loose values, as parsers and other libraries hand them over, to tensors that fit the model."""
