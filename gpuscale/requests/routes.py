"""Route templates: the bounded label that says which handler answered, read after the app has run.

Starlette, FastAPI: the selected route object stands in the scope; its full template (mounts and included routers
with their prefixes) is looked up in a table made by walking the app's routes once. Litestar puts the template
itself into the scope, Flask and Quart into the request, Django into the resolver's match; ``instrument`` brings
the latter two to the scope. Whatever the framework, an app may set ``scope["gpuscale.route"]`` or
``environ["gpuscale.route"]`` itself.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from gpuscale.catalogue import UNMATCHED_ROUTE

ROUTE_KEY = "gpuscale.route"
_PARAMETER = re.compile(r"{([^:{}]+)(:[^{}]+)?}")


class StarletteRoutes:
    """Full templates of the routes under one Starlette or FastAPI app, by the identity of the route object."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._templates: dict[int, tuple[Any, list[str]]] = {}
        self._routes_seen = -1

    def template(self, selected: Any, path: str) -> str:
        """The template of the route (or endpoint) that the app selected for ``path``."""
        found = self._templates.get(id(selected))
        if found is None:
            # Routes may have been added since; walk again, but only when there are more than before.
            count = len(getattr(self._root, "routes", ()))
            if count != self._routes_seen:
                self._routes_seen = count
                self._rebuild()
            # A reference is kept beside each identity, so that it is not given to another object.
            found = self._templates.setdefault(id(selected), (selected, []))
        templates = found[1]
        if len(templates) == 1:
            return templates[0]
        return next((template for template in templates if _matches(template, path)), UNMATCHED_ROUTE)

    def is_unique(self, selected: Any) -> bool:
        """Whether this route stands for one template only; its reference is kept, so its identity stays its own."""
        found = self._templates.get(id(selected))
        return found is not None and len(found[1]) == 1

    def _rebuild(self) -> None:
        self._templates = {}
        for target, template in _walk(getattr(self._root, "routes", ()), "", 0):
            _, templates = self._templates.setdefault(id(target), (target, []))
            if template not in templates:
                templates.append(template)


def _walk(routes: Any, prefix: str, depth: int) -> Iterator[tuple[Any, str]]:
    """Every object that may stand in a scope as route or endpoint, with its full template."""
    if depth > 16:  # an app mounted in itself
        return
    for route in routes:
        contexts = getattr(route, "effective_route_contexts", None)
        if contexts is not None:  # FastAPI >= 0.137 keeps an included router as one route
            for context in contexts():
                # Mounts and WebSockets under it are proxied by a plain route with the whole path.
                inner = getattr(context, "starlette_route", None) or context
                yield from _walk_one(inner, prefix, depth, original=getattr(context, "original_route", None))
        else:
            yield from _walk_one(route, prefix, depth)


def _walk_one(route: Any, prefix: str, depth: int, original: Any = None) -> Iterator[tuple[Any, str]]:
    path = prefix + _plain(getattr(route, "path", "") or "")
    endpoint = getattr(route, "endpoint", None)
    children = getattr(route, "routes", None)
    if endpoint is None:  # a mount or a host: what lies under it, or the app itself when it is opaque
        if children:
            yield from _walk(children, path, depth + 1)
            return
        path, endpoint = path + "/{path}", getattr(route, "app", None)
    yield from ((target, path) for target in (route, original, endpoint) if target is not None)


def _plain(path: str) -> str:
    """``/items/{id:int}`` → ``/items/{id}``."""
    return _PARAMETER.sub(r"{\1}", path)


def _matches(template: str, path: str) -> bool:
    pattern = "".join(".+" if part.startswith("{") else re.escape(part) for part in re.split(r"({[^{}]+})", template))
    return re.fullmatch(pattern, path) is not None


class AsgiRoutes:
    """Finds the template in a scope that an app has handled."""

    def __init__(self, app: Any) -> None:
        self._outermost = _app_with_routes(app)
        self._apps: dict[int, StarletteRoutes] = {}
        self._unique: dict[int, str] = {}

    def __call__(self, scope: Mapping[str, Any], root: Any, path: str) -> str:
        """``root`` is ``scope["app"]`` as it was before the app ran: a mounted app replaces it, and a middleware
        around the whole app comes before it. ``path`` is the request's, as the app sees it."""
        template = self._unique.get(id(scope.get("route")))
        if template is not None and ROUTE_KEY not in scope:
            return template
        return self._find(scope, self._outermost if root is None else root, path)

    def _find(self, scope: Mapping[str, Any], root: Any, path: str) -> str:
        template = scope.get(ROUTE_KEY) or scope.get("path_template")
        if template:
            return str(template)
        selected = scope.get("route") or scope.get("endpoint")
        if selected is None:
            return UNMATCHED_ROUTE
        routes = self._apps.get(id(root))
        if routes is None:
            routes = self._apps[id(root)] = StarletteRoutes(root)
        template = routes.template(selected, path)
        if selected is scope.get("route") and routes.is_unique(selected):
            self._unique[id(selected)] = template
        return template


def _app_with_routes(app: Any) -> Any:
    """The app that has the routes, under middlewares that call what they wrap ``app``, as most do."""
    for _ in range(16):
        if getattr(app, "routes", None) is not None:
            return app
        app = getattr(app, "app", None)
    return None


def wsgi_route(environ: Mapping[str, Any]) -> str:
    """The template in an environ that an app has handled; with the prefix that it is mounted under."""
    template = environ.get(ROUTE_KEY)
    if template is None:
        # Werkzeug leaves its request in the environ; Flask matches before it calls the view.
        rule = getattr(environ.get("werkzeug.request"), "url_rule", None)
        template = getattr(rule, "rule", None)
    if template is None:
        return UNMATCHED_ROUTE
    prefix = environ.get("SCRIPT_NAME", "")
    return f"{prefix}{template}" if prefix else str(template)
