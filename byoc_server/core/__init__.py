"""What stands between HTTP and the device."""
