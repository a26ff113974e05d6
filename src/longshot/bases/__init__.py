"""What turns words and pixels into velocities: one file per base. Loads no torch by itself."""
