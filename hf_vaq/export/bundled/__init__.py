"""Files that are copied beside an exported model."""
