"""How text formats are read: lines, cells, and long stretches of plain numbers."""
