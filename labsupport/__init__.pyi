COURSE_URL: str
__version__: str
