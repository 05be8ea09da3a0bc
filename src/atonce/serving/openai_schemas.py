"""Requests and answers of OpenAI's images API, as far as a class-conditional or unconditional model can honour them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from atonce.core.choices import Fit
from atonce.serving.schemas import (
    EXAMPLE_MASK,
    EXAMPLE_PICTURE,
    Count,
    Guidance,
    Label,
    Name,
    Number,
    Pictures,
    Seed,
    Steps,
    Strict,
)

OutputFormat = Literal["png", "webp", "jpeg"]


class OpenAIRequest(Strict):
    """What OpenAI's three requests share. Fields that would ask for what is not there are refused, none is ignored silently."""

    model: Name | None = Field(default=None, description="Name of a model that is served; default: the first one")
    n: Count | None = Field(default=None, description="Number of images; default 1")
    size: Annotated[str, Field(min_length=1, max_length=40)] | None = Field(
        default=None, description='"auto" or the size of the model, for example "28x28"; no other can be made'
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        default=None, description="url only for generations: a signed link that works for a while. Default b64_json"
    )
    output_format: OutputFormat | None = Field(default=None, description="Default png")
    output_compression: Annotated[int, Field(ge=0, le=100)] | None = Field(default=None, description="Only 100 can be had")
    quality: Annotated[str, Field(max_length=40)] | None = Field(
        default=None, description='"auto" or "standard": there is one quality'
    )
    background: Annotated[str, Field(max_length=40)] | None = Field(default=None, description='"auto" or "opaque"')
    moderation: Annotated[str, Field(max_length=40)] | None = Field(
        default=None, description='"auto" or "low": nothing is moderated'
    )
    stream: bool | None = Field(default=None, description="Only false")
    partial_images: Annotated[int, Field(ge=0, le=3)] | None = Field(default=None, description="Only 0")
    user: Annotated[str, Field(max_length=1000)] | None = Field(default=None, description="Not used")
    seed: Seed | None = Field(default=None, description="More than OpenAI has: the same seed gives the same images")
    steps: Steps | None = Field(default=None, description="More than OpenAI has: network calls")
    guidance: Guidance = None
    version: Name | None = Field(default=None, description="More than OpenAI has: a version of the model")


class ImagesRequest(OpenAIRequest):
    """Images from noise; the prompt names a class."""

    model_config = ConfigDict(json_schema_extra={"example": {"prompt": "", "n": 2, "seed": 7}})

    prompt: Annotated[str, Field(max_length=32_000)] = Field(
        description="Name of a class of the model, or several with commas between; empty: any. For a model without classes: "
        "empty or the model's name"
    )
    style: Annotated[str, Field(max_length=40)] | None = Field(
        default=None, description='"natural" or nothing: there is one style'
    )


class ImagesEditRequest(OpenAIRequest):
    """What is transparent is made anew (inpainting); the prompt names the class of the picture."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"image": EXAMPLE_PICTURE, "mask": EXAMPLE_MASK, "prompt": "", "seed": 1}}
    )

    image: Pictures = Field(description="One picture, or several; the middle square, where they are not of the model's size")
    prompt: Annotated[str, Field(max_length=32_000)] = Field(
        default="", description="Name of the class; empty: guessed, if needed"
    )
    mask: Annotated[str, Field(min_length=1)] | None = Field(
        default=None, description="Picture of the same size, transparent where the image is made anew; opaque ones: white there"
    )
    input_fidelity: Annotated[str, Field(max_length=40)] | None = Field(default=None, description='"high": known pixels stay')
    fit: Fit = Field(default="crop", description="More than OpenAI has: see /v1/edits/inpaint")


class ImagesVariationRequest(OpenAIRequest):
    """Images that are like a given one."""

    model_config = ConfigDict(json_schema_extra={"example": {"image": EXAMPLE_PICTURE, "n": 2, "seed": 1}})

    image: Pictures = Field(description="The picture; the middle square, where it is not of the model's size")
    label: Label | None = Field(default=None, description="More than OpenAI has: the class of the results")
    sigma: Number | None = Field(
        default=None, description="More than OpenAI has: the amount of change; see /v1/edits/variations"
    )
    fit: Fit = Field(default="crop", description="More than OpenAI has: see /v1/edits/variations")


class OpenAIImage(BaseModel):
    """One image."""

    b64_json: str | None = None
    url: str | None = None
    revised_prompt: str | None = Field(default=None, description="Name of its class")
    seed: int | None = None
    index: int = 0


class OpenAIAnswer(BaseModel):
    """Images as OpenAI's clients read them."""

    created: int
    data: list[OpenAIImage]
    output_format: OutputFormat
    size: str
    model: str
    version: str
    seed: int | None = None
