"""A Django site in one file, for uWSGI."""
import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path, re_path
from django.views.decorators.csrf import csrf_exempt

settings.configure(
    ALLOWED_HOSTS=["api.test"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for the test only",
    DATA_UPLOAD_MAX_MEMORY_SIZE=None,
    USE_TZ=True,
)


@csrf_exempt
def echo(request, rest=""):
    """What Django understood of the request."""
    return JsonResponse(
        {
            "node": os.environ.get("NODE", ""),
            "method": request.method,
            "path": request.path,
            "query": request.GET.dict(),
            "form": request.POST.dict(),
            "files": {name: len(file.read()) for name, file in request.FILES.items()},
            "length": len(request.body) if not request.FILES else 0,
            "host": request.get_host(),
            "secure": request.is_secure(),
            "url": request.build_absolute_uri(),
            "address": request.META["REMOTE_ADDR"],
            "cookie": request.COOKIES.get("a", ""),
            "forwarded": request.META.get("HTTP_X_FORWARDED_FOR", ""),
            "user": request.META.get("HTTP_X_USER", ""),
        }
    )


def stream(request):
    return StreamingHttpResponse("x" * 1000 for _ in range(1000))


def gone(request):
    answer = HttpResponse(status=204)
    answer.set_cookie("a", "1")
    answer.set_cookie("b", "2")
    return answer


urlpatterns = [path("stream", stream), path("gone", gone), re_path("^(?P<rest>.*)$", echo)]
application = get_wsgi_application()
