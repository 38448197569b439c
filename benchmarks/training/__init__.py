"""What training costs and gives, against other ways to train."""
