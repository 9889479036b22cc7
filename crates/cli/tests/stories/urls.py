"""Says who answered, and what of the request was seen."""
import os
from django.http import JsonResponse
from django.urls import re_path


def goods(request, rest=""):
    seen = {"node": os.environ.get("NODE", ""), "app": os.environ.get("HUTONG_APP", "")}
    seen.update(path=request.path, secure=request.is_secure(), address=request.META["REMOTE_ADDR"])
    return JsonResponse(seen)


urlpatterns = [re_path("^(?P<rest>.*)$", goods)]
