"""Pure functions on tensors: they know no modules."""
