"""What the machine, or the part of it this container may use, offers."""
