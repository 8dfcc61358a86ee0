"""Image processors that are known: what each does where its file says nothing."""

from __future__ import annotations

from typing import Any

HALF = (0.5, 0.5, 0.5)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
LANCZOS, BILINEAR, BICUBIC = 1, 2, 3  # Pillow's numbers

ALL = {"do_resize": True, "do_rescale": True, "do_normalize": True, "rescale_factor": 1 / 255}
DETECTION = ALL | {
    "resample": BILINEAR,
    "image_mean": IMAGENET_MEAN,
    "image_std": IMAGENET_STD,
    "size": {"shortest_edge": 800, "longest_edge": 1333},
    "default_to_square": False,
    "max_size": None,
    "do_pad": True,
}
CLIP = ALL | {
    "resample": BICUBIC,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "size": {"shortest_edge": 224},
    "default_to_square": False,
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
}
# What is said here is of one tile; `grid.py` cuts the image into them.
TILES: dict[str, Any] = ALL | {
    "resample": LANCZOS,
    "image_mean": HALF,
    "image_std": HALF,
    "size": {"longest_edge": 1456},
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
    "do_pad": True,
    "return_row_col_info": False,
    "do_convert_rgb": True,
}
# Processor -> what it does where the file says nothing.
PROCESSORS: dict[str, dict[str, Any]] = {
    "ViTImageProcessor": ALL
    | {"resample": BILINEAR, "image_mean": HALF, "image_std": HALF, "size": 224},
    "DeiTImageProcessor": ALL
    | {
        "resample": BICUBIC,
        "image_mean": HALF,
        "image_std": HALF,
        "size": 256,
        "crop_size": 224,
        "do_center_crop": True,
    },
    "BeitImageProcessor": ALL
    | {
        "resample": BICUBIC,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"height": 224, "width": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": False,
    },
    "CLIPImageProcessor": CLIP,
    "BitImageProcessor": CLIP,
    "LlavaImageProcessor": CLIP,
    "SiglipImageProcessor": ALL
    | {
        "resample": BICUBIC,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"height": 224, "width": 224},
        "default_to_square": False,
        "do_convert_rgb": True,
    },
    # transformers resizes behind the rescaling, without rounding to whole numbers between the two.
    "DINOv3ViTImageProcessor": ALL
    | {
        "resample": BILINEAR,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "size": {"height": 224, "width": 224},
    },
    # For squares: where `transformers` keeps the proportions of an image, this one does not.
    "Siglip2ImageProcessor": ALL
    | {
        "resample": BILINEAR,
        "image_mean": HALF,
        "image_std": HALF,
        "size": None,
        "patch_size": 16,
        "max_num_patches": 256,
    },
    # Its longest edge and its padding of a batch are for images of differing sizes.
    "YolosImageProcessor": DETECTION,
    # It has no other backend than torchvision's, which resizes behind the rescaling (FLOATS).
    "RfDetrImageProcessor": DETECTION,
    "SegformerImageProcessor": ALL
    | {
        "resample": BILINEAR,
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "size": {"height": 512, "width": 512},
    },
    # Up to 383 pixels it cuts the middle out, and from there on it does not.
    "ConvNextImageProcessor": ALL
    | {
        "resample": BICUBIC,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"shortest_edge": 384},
        "default_to_square": False,
        "crop_pct": 224 / 256,
    },
    "Gemma3ImageProcessor": ALL
    | {
        "resample": BILINEAR,
        "image_mean": HALF,
        "image_std": HALF,
        "size": {"height": 224, "width": 224},
        "do_convert_rgb": True,
    },
    "Idefics3ImageProcessor": TILES,
    "SmolVLMImageProcessor": TILES,
    "ImageGPTImageProcessor": ALL
    | {
        "resample": BILINEAR,
        "image_mean": HALF,
        "image_std": HALF,
        "size": 256,
        "clusters": None,
    },
}
# Processors that resize floats, without smoothing what becomes smaller.
FLOATS = ("RfDetrImageProcessor",)
# Processors that cut out the middle as torchvision does.
TIMM = "TimmWrapperImageProcessor"
TO_NEAREST = (TIMM,)
# Fields that change no pixel.
WITHOUT_EFFECT = {
    "image_processor_type",
    "feature_extractor_type",
    "processor_class",
    "auto_map",
    "_valid_processor_keys",
    "model_input_names",
    "device",
    "disable_grouping",
    "return_tensors",
    "input_data_format",
    "image_seq_length",
    "pan_and_scan_min_crop_size",  # of do_pan_and_scan, which is refused
    "pan_and_scan_max_num_crops",
    "pan_and_scan_min_ratio_to_activate",
    "pad_size",  # of do_pad, which is refused
    "do_reduce_labels",  # of masks, as task.reduce_labels says
    "reduce_labels",
    "video_sampling",  # SmolVLM2's, of videos
    "format",  # of boxes
    "do_convert_annotations",
}
# Fields that change pixels when they hold something else than this.
ONLY = {
    "do_pad": False,
    "do_pan_and_scan": False,
    "data_format": "channels_first",
    "use_square_size": False,
    "do_color_quantize": True,  # else an ImageGPT would be given what it cannot read
}
# What an older file without the processor's name means: model_type -> processor.
OF_MODEL = {
    "vit": "ViTImageProcessor",
    "vit_mae": "ViTImageProcessor",
    "beit": "BeitImageProcessor",
    "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor",
    "clip": "CLIPImageProcessor",
    "llava": "CLIPImageProcessor",
    "siglip": "SiglipImageProcessor",
    "siglip2": "Siglip2ImageProcessor",
    "idefics3": "Idefics3ImageProcessor",
    "smolvlm": "SmolVLMImageProcessor",
    "gemma3": "Gemma3ImageProcessor",
    "paligemma": "SiglipImageProcessor",
    "imagegpt": "ImageGPTImageProcessor",
    "yolos": "YolosImageProcessor",
    "rf_detr": "RfDetrImageProcessor",
    "segformer": "SegformerImageProcessor",
    "convnext": "ConvNextImageProcessor",
    "convnextv2": "ConvNextImageProcessor",
    "resnet": "ConvNextImageProcessor",
    "swin": "ViTImageProcessor",
}
