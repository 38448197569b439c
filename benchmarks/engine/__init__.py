"""Speed, memory and accuracy of solves, against other libraries."""
