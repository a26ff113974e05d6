"""What turns words and pixels into velocities: one file per base, and what the bases share. Importing it loads no torch."""
