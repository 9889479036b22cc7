"""The site's settings, as few as there can be."""
SECRET_KEY = "for the test only"
ALLOWED_HOSTS = ["api-aaa.abc.com"]
ROOT_URLCONF = "hshengmall.urls"
