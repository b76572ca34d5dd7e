"""What torchinit knows of other libraries, asked here and nowhere else."""
