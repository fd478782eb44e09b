"""The application: which address answers what."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from sktl.exceptions import InputError
from sktl.serving._answers import CARD, PREDICTIONS, REFUSED, UPLOAD, AsciiJSONResponse, card_of, predictions_of
from sktl.serving._batcher import Batcher, Busy
from sktl.serving._errors import Refusal
from sktl.serving._gallery import Gallery
from sktl.serving._limits import Limits
from sktl.serving._metrics import Counted, Metrics
from sktl.serving._model import BadImages, ServedModel
from sktl.serving._pages import add_pages
from sktl.serving._uploads import Uploads

MAX_SIMILAR = 24


def make_app(
    model: Any,
    *,
    name: str = "model",
    limits: Limits | None = None,
    gallery: Gallery | None = None,
    facts: Mapping[str, Any] | None = None,
) -> FastAPI:
    """Make an ASGI application that predicts with a fitted model.

    Parameters
    ----------
    model : estimator or ServedModel
        Fitted, with ``predict``, for images.
    name : str, default="model"
        Name of the model on its page and card.
    limits : Limits, default=None
        Bounds on what clients may ask for; None uses the defaults.
    gallery : Gallery, default=None
        Images of which the most similar ones can be shown with each prediction.
    facts : dict, default=None
        Further facts for the model's card, such as scores or the training data; must be serialisable as JSON.

    Returns
    -------
    app : FastAPI
        For any ASGI server. Its threads start and end with its lifespan; where it is mounted in another application,
        enter ``app.router.lifespan_context(app)`` in that application's lifespan.

    Raises
    ------
    InputError
        If the model does not predict, or not from images.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sktl import FineTuneClassifier
    >>> from sktl.serving import make_app
    >>> digits = load_digits()
    >>> images = (digits.images * 255 / 16).astype("uint8")[..., None]
    >>> model = FineTuneClassifier(strategy="feature_extraction", image_size=32).fit(images[:100], digits.target[:100])
    >>> app = make_app(model, name="digits")  # then: uvicorn.run(app)
    """
    limits = limits or Limits()
    served = model if isinstance(model, ServedModel) else ServedModel(model, limits.max_pixels)
    service = Service(served, limits, gallery)
    app = FastAPI(
        title=name,
        version=version("sktl"),
        description="Predictions of a fitted sktl model.",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=service.lifespan,
    )
    app.add_exception_handler(Refusal, _refuse)
    app.add_middleware(Counted, metrics=service.metrics)
    _add_predict(app, service)
    _add_facts(app, service, card_of(served, name, limits, gallery, facts or {}))
    add_pages(app)
    if gallery is not None:
        _add_gallery(app, gallery)
    return app


class Service:
    """What the addresses share: the model, its threads, limits and counters.

    Parameters
    ----------
    model : ServedModel
        Predicts.
    limits : Limits
        What clients may ask for.
    gallery : Gallery or None
        Images to compare with.
    """

    def __init__(self, model: ServedModel, limits: Limits, gallery: Gallery | None):
        self.model, self.limits, self.gallery = model, limits, gallery
        self.uploads = Uploads(limits)
        self.metrics = Metrics()
        self.metrics.watch("sktl_queued_images", "Images that wait", lambda: self.batcher.n_queued)
        self.metrics.watch("sktl_upload_bytes", "Bytes of images held", lambda: self.uploads.bytes_held)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Start the threads, and let them finish what is waiting in the end."""
        await run_in_threadpool(self.model.warm_up)
        self.batcher = Batcher(self.model, self.limits.max_queued_images, self.metrics.batch.observe)
        try:
            yield
        finally:
            await run_in_threadpool(self.batcher.close)

    async def predict(self, request: Request, n_similar: int) -> dict[str, Any]:
        """Read the images of a request, wait for their turn, and return the answer."""
        if n_similar and self.gallery is None:
            raise Refusal(422, "There are no images to compare with: start the server with --gallery DIR.")
        with self.uploads.account() as account:
            uploads = await account.read(request)
            names = [upload.name for upload in uploads]
            answer = await self._ask([upload.data for upload in uploads])
        if isinstance(answer, BadImages):
            self.metrics.bad_images.inc(len(answer.reasons))
            rows = [(index, names[index], reason) for index, reason in sorted(answer.reasons.items())]
            raise Refusal(422, _summary(rows, len(names)), rows)
        self.metrics.images.inc(len(names))
        similar = None
        if n_similar:
            similar = await run_in_threadpool(self.gallery.most_similar, answer.embeddings, n_similar)
        return predictions_of(answer, names, self.model.classes, similar)

    async def _ask(self, images: list[bytes]) -> Any:
        try:
            answer = self.batcher.submit(images)
        except Busy as error:
            raise Refusal(503, "Too many images are waiting; try again in a moment.") from error
        try:
            async with asyncio.timeout(self.limits.seconds_to_answer):
                return await asyncio.wrap_future(answer)
        except TimeoutError as error:
            raise Refusal(503, f"No answer within {self.limits.seconds_to_answer:g} seconds; try again.") from error


def _summary(rows, n_images: int) -> str:
    if n_images == 1:
        return f"The image cannot be used: {rows[0][2]}"
    return f"{len(rows)} of {n_images} images cannot be used; none is predicted. Leave them out: see rows."


async def _refuse(request: Request, refusal: Refusal) -> Response:
    return refusal.response()


def _add_predict(app: FastAPI, service: Service) -> None:
    @app.post("/predict", summary="Predict images", responses={200: PREDICTIONS, **REFUSED}, openapi_extra=UPLOAD)
    async def predict(
        request: Request,
        similar: Annotated[
            int, Query(ge=0, le=MAX_SIMILAR, description="How many images of the gallery to find for each.")
        ] = 0,
    ) -> Response:
        """Send one or many images as files of a form; the names of the fields do not matter. Or one image as it is.

        The answer holds, for each image in the order of the files, the label and the probability of every class (or, of
        a regressor, the numbers). If one image cannot be used, none is predicted, and the answer names all such images.
        """
        return AsciiJSONResponse(await service.predict(request, similar))


def _add_facts(app: FastAPI, service: Service, card: dict[str, Any]) -> None:
    @app.get("/health", summary="Is the server there?")
    async def health() -> dict[str, str]:
        """Answer as soon as predictions can be asked for."""
        return {"status": "ok"}

    @app.get("/model", summary="The model's card", responses={200: CARD})
    async def model() -> Response:
        """Say what the model is: classes, backbone, strategy, versions, and what a request may hold."""
        return AsciiJSONResponse(card)

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        """Requests by address and status, their times, images, batches, and the memory of the process."""
        return Response(service.metrics.text(), media_type=service.metrics.content_type)


def _add_gallery(app: FastAPI, gallery: Gallery) -> None:
    @app.get("/gallery/{index}.jpg", summary="A small picture of an image of the gallery", response_class=Response)
    def thumbnail(index: int) -> Response:
        """Return a JPEG of at most 192 pixels a side; numbers are those of ``similar`` in predictions."""
        try:
            content = gallery.thumbnail(index)
        except (IndexError, InputError) as error:
            raise Refusal(404, f"There is no image {index} in the gallery.") from error
        return Response(content, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})
