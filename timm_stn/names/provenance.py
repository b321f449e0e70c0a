"""Fields of a pretrained cfg that speak of certain weights. Other weights of the architecture do not inherit them."""

__all__ = ['OF_WEIGHTS', 'TESTED']

TESTED = ('test_input_size', 'test_pool_size', 'test_crop_pct')  # the best sizes for them to be tested at
OF_WEIGHTS = (  # what they are, where they are from, and who may use them
    'tag', 'license', 'description', 'origin_url', 'paper_name', 'paper_ids', 'notes', 'label_names',
    'label_descriptions', 'label_offset')
