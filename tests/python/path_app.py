"""ASGI application like a Python model server: one closed resource, one operation, and all other paths.

Usage: path_app.py PORT. Prints `listening` once it serves.
"""

import sys

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Route


async def admin(_request):
    return PlainTextResponse("SECRET")


async def chat(request):
    return JSONResponse({"answered": (await request.json()).get("model")})


async def folder(_request):
    return PlainTextResponse("folder")


async def to_folder(request):
    return RedirectResponse(request.url_for("folder"))


async def open_to_all(request):
    return PlainTextResponse("open " + request.url.path)


application = Starlette(
    routes=[
        Route("/admin/keys", admin),
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/folder", to_folder),
        Route("/folder/", folder),
        Route("/{rest:path}", open_to_all),
    ]
)


class Server(uvicorn.Server):
    async def startup(self, sockets=None):
        await super().startup(sockets=sockets)
        print("listening", flush=True)


if __name__ == "__main__":
    Server(uvicorn.Config(application, host="127.0.0.1", port=int(sys.argv[1]), log_level="error")).run()
