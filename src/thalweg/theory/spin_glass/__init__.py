"""The spherical spin glass: a random landscape, and what is known of it exactly."""
