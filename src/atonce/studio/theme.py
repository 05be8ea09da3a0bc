"""How the page looks: Gradio's theme in our colours, with the fonts that the reader's machine has."""

from __future__ import annotations

from gradio.themes import Base, Color, Font, sizes

BLUE = Color(
    "#f1f6fb", "#e1ecf6", "#c4daee", "#9fc3e3", "#6ba1cf", "#3f7fb5", "#265c8f", "#1f4d79", "#1a4064", "#163552", "#0e2338"
)
STONE = Color(
    "#f7f6f2", "#efeee9", "#dfddd6", "#c5c4bd", "#989a9c", "#6b7078", "#525862", "#3d434d", "#2a3039", "#1d232b", "#14181e"
)
"""Shades 50 to 950."""


def theme() -> Base:
    """The theme; every pair of text and background in it has a contrast of at least 4.5:1."""
    found = Base(
        primary_hue=BLUE,
        secondary_hue=BLUE,
        neutral_hue=STONE,
        radius_size=sizes.radius_md,
        font=[Font("system-ui"), Font("-apple-system"), Font("Segoe UI"), Font("sans-serif")],
        font_mono=[Font("ui-monospace"), Font("Consolas"), Font("monospace")],
    )
    return found.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="#1c2430",
        body_text_color_dark="#e8e6e1",
        body_text_color_subdued="#565c66",
        body_text_color_subdued_dark="#a9afb8",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="*neutral_950",
        border_color_primary="*neutral_200",
        border_color_primary_dark="*neutral_700",
        block_background_fill="#ffffff",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_shadow="none",
        block_label_text_color="#3d434d",
        block_label_text_color_dark="#c5c4bd",
        block_title_text_color="#1c2430",
        block_title_text_color_dark="#e8e6e1",
        block_title_text_weight="600",
        block_info_text_color="#565c66",
        block_info_text_color_dark="#a9afb8",
        input_background_fill="#ffffff",
        input_background_fill_dark="*neutral_950",
        input_border_color="#8a93a0",
        input_border_color_dark="#77808d",
        input_border_width="1px",
        input_placeholder_color="#62686f",
        input_placeholder_color_dark="#a0a6ae",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_300",
        button_primary_background_fill_hover_dark="*primary_200",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#10151b",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_text_color="#1c2430",
        button_secondary_text_color_dark="#e8e6e1",
        button_secondary_border_color="#8a93a0",
        button_secondary_border_color_dark="#77808d",
        button_border_width="1px",
        button_transition="background-color 0.15s ease",
        slider_color="*primary_600",
        slider_color_dark="*primary_300",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        link_text_color_visited="*primary_700",
        link_text_color_visited_dark="*primary_300",
        checkbox_border_color="#8a93a0",
        checkbox_border_color_dark="#77808d",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_label_background_fill="#ffffff",
        checkbox_label_background_fill_dark="*neutral_900",
        checkbox_label_border_color="#8a93a0",
        checkbox_label_border_color_dark="#77808d",
        table_border_color="*neutral_200",
        table_border_color_dark="*neutral_700",
    )
