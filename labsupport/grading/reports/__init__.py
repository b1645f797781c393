"""What is made of the rows once a class is graded: pages, tables, and files for the LMS."""
