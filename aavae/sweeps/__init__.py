"""`-m`: a grid of jobs, checked first and run in processes of their own."""
