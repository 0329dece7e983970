"""Larger and cleaner pictures: Real-ESRGAN and waifu2x by ncnn, tile by tile, without torch.

`enlarge.extras` does what the Extras tab of AUTOMATIC1111's web UI does, as one function of an array.
"""
