"""OpenAI's images API on our terms: a prompt is a label, a size is the model's, and what cannot be honoured is refused."""

from __future__ import annotations

import difflib
import time

from atonce.core.choices import class_numbers
from atonce.core.errors import InputError
from atonce.model import ConsistencyModel
from atonce.serving.encode import Made, as_base64, encode
from atonce.serving.errors import bad_request
from atonce.serving.links import Link, token_of
from atonce.serving.openai_schemas import (
    ImagesEditRequest,
    ImagesRequest,
    ImagesVariationRequest,
    OpenAIAnswer,
    OpenAIImage,
    OpenAIRequest,
)
from atonce.serving.schemas import GenerateRequest, InpaintRequest, VariationsRequest

_ALLOWED = {
    "quality": ("auto", "standard"),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "style": ("natural",),
    "input_fidelity": ("high",),
    "output_compression": (100,),
    "stream": (False,),
    "partial_images": (0,),
}
"""Values that ask for nothing which is not so anyway."""


def check(model: ConsistencyModel, wanted: OpenAIRequest) -> None:
    """Refuse what this service cannot honour.

    Args:
        model: The model.
        wanted: The request.

    Raises:
        bad_request: A field asks for it.
    """
    for name, allowed in _ALLOWED.items():
        value = getattr(wanted, name, None)
        if value is not None and value not in allowed:
            listed = " or ".join(repr(each) if isinstance(each, str) else str(each).lower() for each in allowed)
            raise bad_request(f"{name} is {str(value)[:40]!r}, which cannot be had here: leave it out, or say {listed}", name)
    _, height, width = model.image_shape
    if wanted.size not in (None, "auto", f"{width}x{height}"):
        raise bad_request(f'size is {wanted.size!r}, this model makes {width}x{height}: say so, or "auto"', "size")


def labels_of(prompt: str, model: ConsistencyModel, name: str, n: int) -> list[int | str] | None:
    """The classes that a prompt names.

    Args:
        prompt: A name or number, or several with commas between; empty for any.
        model: The model.
        name: Its name.
        n: Images.

    Returns:
        Labels, or ``None`` where the prompt asks for none.

    Raises:
        bad_request: It is none of these; the message says what it may be.
    """
    text = " ".join(prompt.split())
    if not text or text.casefold() == name.casefold():
        return None
    names = model.labels
    if names is None:
        raise bad_request(f"prompt is {_short(text)}, but {name} has no classes: leave it empty, or say {name!r}", "prompt")
    known = {each.casefold() for each in names}
    words = [text] if text.casefold() in known else [word.strip() for word in text.split(",")]
    try:
        numbers = class_numbers(words, names) or ()
    except InputError:
        raise bad_request(_not_a_label(text, names, name), "prompt") from None
    if len(numbers) not in (1, n):
        raise bad_request(f"prompt names {len(numbers)} classes for {n} images: name one, or one for each image", "prompt")
    return list(numbers)


def generation(wanted: ImagesRequest, model: ConsistencyModel, name: str) -> GenerateRequest:
    """OpenAI's request as ours.

    Args:
        wanted: The request.
        model: The model.
        name: Its name.

    Returns:
        The same, in our words.
    """
    n = wanted.n or 1
    return GenerateRequest(
        model=name,
        version=wanted.version,
        n=n,
        seed=wanted.seed,
        labels=labels_of(wanted.prompt, model, name, n),
        steps=wanted.steps,
        guidance=wanted.guidance,
    )


def inpainting(wanted: ImagesEditRequest, model: ConsistencyModel, name: str) -> InpaintRequest:
    """OpenAI's edit as ours. Arguments as in :func:`generation`."""
    _no_links(wanted)
    n = wanted.n or 1
    pictures = 1 if isinstance(wanted.image, str) else len(wanted.image)
    return InpaintRequest(
        model=name,
        version=wanted.version,
        n=n,
        seed=wanted.seed,
        labels=labels_of(wanted.prompt, model, name, n * pictures),
        steps=wanted.steps,
        guidance=wanted.guidance,
        image=wanted.image,
        mask=wanted.mask,
        fit=wanted.fit,
    )


def variation(wanted: ImagesVariationRequest, model: ConsistencyModel, name: str) -> VariationsRequest:
    """OpenAI's variation as ours. Arguments as in :func:`generation`."""
    _no_links(wanted)
    return VariationsRequest(
        model=name,
        version=wanted.version,
        n=wanted.n or 1,
        seed=wanted.seed,
        labels=wanted.label,
        steps=wanted.steps,
        guidance=wanted.guidance,
        image=wanted.image,
        sigma=wanted.sigma,
        fit=wanted.fit,
    )


def body(made: Made, wanted: OpenAIRequest, links: tuple[str, bytes, float] | None) -> tuple[bytes, float]:
    """The answer that OpenAI's clients read.

    Args:
        made: The images.
        wanted: The request.
        links: Where links begin, what signs them and how long they work, where links are wanted.

    Returns:
        JSON, and the seconds of writing images.
    """
    begun = time.perf_counter()
    form = wanted.output_format or "png"
    images: list[OpenAIImage] = []
    for i in range(len(made.images)):
        label = None if made.labels is None else made.labels[i]
        name = made.names[label] if made.names is not None and label is not None and label >= 0 else None
        seed = made.seeds[i]
        image = OpenAIImage(revised_prompt=name, seed=seed, index=made.indices[i])
        if links is not None and seed is not None:
            start, secret, seconds = links
            until = int(time.time() + seconds)
            sigmas = tuple(made.sigmas)
            link = Link(made.model, made.version, seed, made.indices[i], label, sigmas, wanted.guidance, form, until)
            images.append(image.model_copy(update={"url": start + token_of(link, secret)}))
        else:
            images.append(image.model_copy(update={"b64_json": as_base64(encode(made.images[i], form, made.about(i)))}))
    height, width = made.images.shape[-2:]
    answer = OpenAIAnswer(
        created=int(time.time()),
        data=images,
        output_format=form,
        size=f"{width}x{height}",
        model=made.model,
        version=made.version,
        seed=made.seed,
    )
    return answer.model_dump_json().encode(), time.perf_counter() - begun


def _no_links(wanted: OpenAIRequest) -> None:
    """A link is made again from its seed alone, which an edit is not.

    Raises:
        bad_request: One is wanted.
    """
    if wanted.response_format == "url":
        text = 'response_format is "url", which only generations can have: nothing is kept here; say "b64_json"'
        raise bad_request(text, "response_format")


def _not_a_label(text: str, names: list[str], name: str) -> str:
    close = difflib.get_close_matches(text.casefold(), [each.casefold() for each in names], n=3, cutoff=0.5)
    within = [each for each in names if each.casefold() in text.casefold()]
    near = within or [each for each in names if each.casefold() in close]
    hint = f"; near: {', '.join(near[:3])}" if near else ""
    listed = ", ".join(names[:20]) + ", ..." * (len(names) > 20)
    return f"prompt is {_short(text)}: {name} makes classes, not descriptions: name one of {listed}{hint}, or leave it empty"


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
