"""What is made from the rows once a class is graded: pages, tables, and files for the LMS."""
