"""What uwsgi.ini names as wsgi-file."""
import os
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "hshengmall.settings")
application = get_wsgi_application()
